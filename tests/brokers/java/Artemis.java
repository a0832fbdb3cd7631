import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import org.apache.activemq.artemis.api.core.SimpleString;
import org.apache.activemq.artemis.core.config.impl.ConfigurationImpl;
import org.apache.activemq.artemis.core.server.JournalType;
import org.apache.activemq.artemis.core.server.embedded.EmbeddedActiveMQ;
import org.apache.activemq.artemis.core.settings.impl.AddressSettings;

/** ActiveMQ Artemis; GET /NAME at the control port answers with what the queue counts. */
public class Artemis {
    public static void main(String[] arguments) throws Exception {
        var data = System.getProperty("data");
        var prefixes = "?protocols=STOMP;anycastPrefix=/queue/;multicastPrefix=/topic/";
        var settings = new AddressSettings().setAutoDeleteQueues(false).setAutoDeleteAddresses(false);
        var configuration = new ConfigurationImpl()
            .setSecurityEnabled(false)
            .setJournalType(JournalType.NIO)
            .setJournalDirectory(data + "/journal")
            .setBindingsDirectory(data + "/bindings")
            .setPagingDirectory(data + "/paging")
            .setLargeMessagesDirectory(data + "/large")
            .addAcceptorConfiguration("stomp", "tcp://127.0.0.1:" + System.getProperty("stomp") + prefixes)
            .addAddressSetting("#", settings);
        var broker = new EmbeddedActiveMQ().setConfiguration(configuration);
        broker.start();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> stop(broker)));
        control(broker);
        Thread.currentThread().join();
    }

    private static void stop(EmbeddedActiveMQ broker) {
        try {
            broker.stop();
        } catch (Exception error) {
            error.printStackTrace();
        }
    }

    private static void control(EmbeddedActiveMQ broker) throws Exception {
        var port = Integer.parseInt(System.getProperty("control"));
        var server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", exchange -> {
            var name = SimpleString.of(exchange.getRequestURI().getPath().substring(1));
            var queue = broker.getActiveMQServer().locateQueue(name);
            var answer = queue == null ? "0 0" : queue.getMessagesAcknowledged() + " " + queue.getDeliveringCount();
            exchange.sendResponseHeaders(200, answer.length());
            exchange.getResponseBody().write(answer.getBytes());
            exchange.close();
        });
        server.start();
    }
}

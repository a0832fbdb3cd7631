import com.hivemq.embedded.EmbeddedHiveMQ;
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.nio.file.Path;

/** HiveMQ Community Edition; the control port opens once it runs. */
public class HiveMQ {
    public static void main(String[] arguments) throws Exception {
        var data = Path.of(System.getProperty("data"));
        var folders = new Path[] {data.resolve("conf"), data.resolve("data"), data.resolve("extensions")};
        for (var folder : folders) {
            Files.createDirectories(folder);
        }
        Files.writeString(folders[0].resolve("config.xml"), configuration());
        var broker = EmbeddedHiveMQ.builder().withConfigurationFolder(folders[0]).withDataFolder(folders[1])
            .withExtensionsFolder(folders[2]).build();
        broker.start().join();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> broker.stop().join()));
        HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.getInteger("control")), 0).start();
        Thread.currentThread().join();
    }

    private static String configuration() {
        var tcp = "<tcp-listener><port>%s</port><bind-address>127.0.0.1</bind-address></tcp-listener>";
        var web = "<websocket-listener><port>%s</port><bind-address>127.0.0.1</bind-address><path>/mqtt</path>"
            + "<subprotocols><subprotocol>mqtt</subprotocol></subprotocols></websocket-listener>";
        return "<hivemq><listeners>" + tcp.formatted(System.getProperty("mqtt"))
            + web.formatted(System.getProperty("websocket")) + "</listeners>"
            + "<mqtt><queued-messages><max-queue-size>100000</max-queue-size></queued-messages></mqtt>"
            + "<anonymous-usage-statistics><enabled>false</enabled></anonymous-usage-statistics></hivemq>";
    }
}
